#!/bin/sh
# doppel doctor: JSON that jq reads and that agrees with the table, the measured classes, bad options.
#
# usage: doctor.sh DOPPEL
set -u
doppel=$1
bad=0
checks=0

check() { # description, then a command that must succeed
	checks=$((checks + 1))
	what=$1
	shift
	if ! "$@" >/dev/null; then
		echo "failed: $what"
		bad=1
	fi
}

host=$("$doppel" doctor --format json) || bad=1
has() { printf '%s' "$host" | jq -e "$1"; }
check "host" has '.host | (.cpu | length > 0) and .threads > 0 and .memory_bytes > 0 and .tsc_khz >= 0'
check "kvm speeds only where kvm opens" has '.kvm | .opens or (.ring0_instructions_per_second == 0 and (.usable | not))'
check "a usable kvm was measured" has '.kvm | (.usable | not) or .ring0_instructions_per_second > 0'
check "auto takes kvm only at 200 million/s" \
	has '(.auto.engine == "kvm") == (.kvm.ring0_instructions_per_second >= 200000000)'
check "auto says why" has '.auto.why | length > 0'
check "soft is usable when nothing needed is missing" has '.soft.usable == (.soft.checks | map(.ok or (.needed | not)) | all)'
engine=$(printf '%s' "$host" | jq -r .auto.engine)
check "the table says the same" sh -c '"$0" doctor | grep -q -- "--engine auto takes $1: "' "$doppel" "$engine"

isa=$("$doppel" doctor --isa --format json) || bad=1
classes() { # class, instructions...
	class=$1
	shift
	for name; do
		check "$name is $class" sh -c 'printf "%s" "$0" | jq -e --arg n "$1" --arg c "$2" \
			"any(.instructions[]; .name == \$n and .class == \$c)"' "$isa" "$name" "$class"
	done
}
isa_has() { printf '%s' "$isa" | jq -e "$1"; }
classes privileged HLT CLI STI LGDT LIDT LLDT LTR CLTS 'MOV CR0, r' 'MOV r, CR0' 'MOV CR3, r' RDMSR WRMSR IN OUT INVLPG WBINVD SWAPGS SYSRET
classes critical POPF PUSHF CPUID 'MOV r, CS' LAR LSL VERR VERW 'CALL far' 'RET far' IRET
classes sensitive SYSCALL INT3 UD2
classes innocuous ADD 'MOV m, r' 'LOCK CMPXCHG'
check "HLT gave #GP" isa_has 'any(.instructions[]; .name == "HLT" and .trap == "#GP")'
check "UD2 gave #UD" isa_has 'any(.instructions[]; .name == "UD2" and .trap == "#UD")'
check "INT3 gave #BP" isa_has 'any(.instructions[]; .name == "INT3" and .trap == "#BP")'
check "POPF left IF set" isa_has 'any(.instructions[]; .name == "POPF" and .value == "0x200")'
check "MOV r, CS showed ring 3" isa_has 'any(.instructions[]; .name == "MOV r, CS" and .value == "0x33")'
check "UMIP covers all five or none" \
	isa_has '[.instructions[] | select(.name | IN("SGDT", "SIDT", "SLDT", "STR", "SMSW")).class] | unique | length == 1'
check "an emulated SGDT shows no real base" \
	isa_has 'all(.instructions[]; (.emulated and .name == "SGDT") | not) or
		any(.instructions[]; .name == "SGDT" and .value == "0xfffffffffffe0000")'
check "counts add up" isa_has '([.counts[]] | add) == (.instructions | length)'
check "counts are the classes" isa_has '. as $r | .counts | to_entries |
	all(. as $c | [$r.instructions[] | select(.class == $c.key)] | length == $c.value)'
check "the theorem" isa_has '.theorem_holds == (.counts.critical == 0) and (.theorem_holds | not)'

refused() { # arguments that must end with status 125, one line, and a hint
	checks=$((checks + 1))
	text=$("$doppel" doctor "$@" 2>&1 >/dev/null)
	status=$?
	if [ $status -ne 125 ] || [ "$(printf '%s\n' "$text" | wc -l)" -ne 1 ] || [ "${text%--help)}" = "$text" ]; then
		echo "failed: doctor $*: status $status: $text"
		bad=1
	fi
}
refused --nonsense
refused --format xml
refused --format
refused leftover
check "help" sh -c '"$0" doctor --help | grep -q -- --isa' "$doppel"

echo "doctor: $checks checks"
exit $bad
