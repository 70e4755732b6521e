-- Calls, closures, tables and strings.
local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end

local function permutations(n)
	local p, count, sum, sign = {}, {}, 0, 1
	for i = 1, n do p[i] = i; count[i] = 0 end
	local i = 1
	while i <= n do
		if count[i] < i - 1 then
			local j = i % 2 == 1 and 1 or count[i] + 1
			p[i], p[j] = p[j], p[i]
			sum = sum + sign * p[1]
			sign = -sign
			count[i] = count[i] + 1
			i = 1
		else
			count[i] = 0
			i = i + 1
		end
	end
	return sum
end

local parts = {}
for i = 1, 200000 do parts[#parts + 1] = string.format("%d:%x", i % 1000, i * 7919) end
local text = table.concat(parts, " ")
local seen, n = {}, 0
for a in text:gmatch(":(%x+)") do if not seen[a] then seen[a] = true; n = n + 1 end end
print(fib(33), permutations(10), n, #text)
