-- Amounts are four texts: dollars, calls, input and output tokens.

local function amount(first) -- of ARGV, from there on
  return { ARGV[first], ARGV[first + 1], ARGV[first + 2], ARGV[first + 3] }
end

local function minus(a)
  return { negated(a[1]), negated(a[2]), negated(a[3]), negated(a[4]) }
end

local function sum(a, b)
  return { plus(a[1], b[1]), plus(a[2], b[2]), plus(a[3], b[3]), plus(a[4], b[4]) }
end

local function is_less(a, b) -- in any part
  for i = 1, 4 do
    if not is_within(a[i], b[i], '0', '0', '0') then return true end
  end
  return false
end

local function is_nothing(a)
  return a[1] == '0' and a[2] == '0' and a[3] == '0' and a[4] == '0'
end
