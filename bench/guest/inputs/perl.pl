# Words of a text: hashes, regular expressions, sorting, string building.
use strict;
use warnings;

open(my $in, '<', '/in/text') or die "text: $!";
my (%count, %lengths, $camel);
while (my $line = <$in>) {
	$count{lc $1}++ while $line =~ /\b([A-Za-z_]\w+)\b/g;
	$camel++ if $line =~ /[a-z][A-Z][a-z]+\s*[({=]/;
	$line =~ s/(\d+)/<$1>/g;
	$lengths{length $line}++;
}
my @top = sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count;
print join(' ', map { "$_=$count{$_}" } @top[0 .. 19]), "\n", scalar(@top), " $camel\n";
my $mode = (sort { $lengths{$b} <=> $lengths{$a} || $a <=> $b } keys %lengths)[0];
print "$mode\n";
my @sieve = (1) x 2000000;
for (my $i = 2; $i * $i < @sieve; $i++) {
	next unless $sieve[$i];
	for (my $j = $i * $i; $j < @sieve; $j += $i) { $sieve[$j] = 0 }
}
print scalar(grep { $sieve[$_] } 2 .. $#sieve), "\n";
