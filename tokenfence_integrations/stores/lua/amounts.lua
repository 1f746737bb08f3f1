-- Amounts are four texts: dollars, calls, input and output tokens.

local function amount(first) -- of ARGV, from there on
  return { ARGV[first], ARGV[first + 1], ARGV[first + 2], ARGV[first + 3] }
end

local function minus(a)
  return { negated(a[1]), negated(a[2]), negated(a[3]), negated(a[4]) }
end

local function is_nothing(a)
  return a[1] == '0' and a[2] == '0' and a[3] == '0' and a[4] == '0'
end
