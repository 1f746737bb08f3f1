-- Numbers. Lua's are doubles, exact up to 2^53 only, and the server's have 64 bits: so they stay
-- text, and those of more than 15 digits are added in two parts, the lower one of 14 digits.

local function parts(text)
  if #text < 15 then return 0, tonumber(text) end
  local high, low = tonumber(string.sub(text, 1, -15)) or 0, tonumber(string.sub(text, -14))
  if string.sub(text, 1, 1) == '-' then low = -low end
  return high, low
end

local function sum_of_large(numbers) -- both parts, of the same sign
  local high, low = 0, 0
  for _, text in ipairs(numbers) do
    local h, l = parts(text)
    high, low = high + h, low + l
  end
  local carried = (low - low % 1e14) / 1e14
  high, low = high + carried, low - carried * 1e14 -- now low is 0 or more
  if high < 0 and low > 0 then high, low = high + 1, low - 1e14 end
  return high, low
end

local function plus(a, b)
  if #a < 16 and #b < 16 then return string.format('%.0f', a + b) end
  local high, low = sum_of_large({ a, b })
  if high == 0 then return string.format('%.0f', low) end
  return string.format('%.0f%014.0f', high, math.abs(low))
end

local function negated(text)
  if text == '0' then return text end
  if string.sub(text, 1, 1) == '-' then return string.sub(text, 2) end
  return '-' .. text
end

local function is_within(limit, a, b, c, more)
  if #limit < 16 and #a < 16 and #b < 16 and #c < 16 and #more < 16 then
    return a + b + c + more <= tonumber(limit)
  end
  local high, low = sum_of_large({ a, b, c, more, negated(limit) })
  return high < 0 or (high == 0 and low <= 0)
end
