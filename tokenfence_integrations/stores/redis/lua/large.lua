-- Sums of numbers of any size, in two parts of the same sign: the lower one has 14 digits.

local function parts(text)
  if #text < 15 then return 0, tonumber(text) end
  local high, low = tonumber(string.sub(text, 1, -15)) or 0, tonumber(string.sub(text, -14))
  if string.sub(text, 1, 1) == '-' then low = -low end
  return high, low
end

local function sum_of_large(numbers)
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

--@ negated
