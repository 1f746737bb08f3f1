-- What is changed by amounts.

--@ negated
local function sum(one, other)
  if other == NOTHING then return one end
  if one == NOTHING then return other end
  local a, b, c, d = match(one, FOUR)
  return sum_of_parts(a, b, c, d, match(other, FOUR))
end

local function minus(amount)
  local a, b, c, d = match(amount, FOUR)
  return negated(a) .. ' ' .. negated(b) .. ' ' .. negated(c) .. ' ' .. negated(d)
end

-- Whether one amount is less than another in any part.
local function is_less(one, other)
  local mine, theirs = { match(one, FOUR) }, { match(other, FOUR) }
  for i = 1, 4 do
    if not is_within(mine[i], theirs[i], '0', '0', '0') then return true end
  end
  return false
end

-- Adds to the parts of an account.
local function change(key, account, spent, reserved, uncertain)
  account[SPENT] = sum(account[SPENT], spent)
  account[RESERVED] = sum(account[RESERVED], reserved)
  account[UNCERTAIN] = sum(account[UNCERTAIN], uncertain)
  redis.call('HSET', key,
    'spent', account[SPENT], 'reserved', account[RESERVED], 'uncertain', account[UNCERTAIN])
end
