-- Numbers. Lua's are doubles, exact up to 2^53 only, and the server's have 64 bits: so they stay
-- text, and those of more than 15 digits are added in two parts (large.lua).

local function plus(a, b)
  if #a < 16 and #b < 16 then return string.format('%.0f', a + b) end
  --@ large
  local high, low = sum_of_large({ a, b })
  if high == 0 then return string.format('%.0f', low) end
  return string.format('%.0f%014.0f', high, math.abs(low))
end

local function is_within(limit, a, b, c, more)
  -- A limit beyond 2^53 may be rounded: it is still on the same side of a sum that is exact.
  if #a < 16 and #b < 16 and #c < 16 and #more < 16 then
    return a + b + c + more <= tonumber(limit)
  end
  --@ large
  local high, low = sum_of_large({ a, b, c, more, negated(limit) })
  return high < 0 or (high == 0 and low <= 0)
end
