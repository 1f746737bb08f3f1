-- Amounts, and what is changed by them.

local NOTHING = '0 0 0 0'

local function sum(one, other)
  if one == NOTHING then return other end
  if other == NOTHING then return one end
  local a, b, c, d = four(one)
  local e, f, g, h = four(other)
  return plus(a, e) .. ' ' .. plus(b, f) .. ' ' .. plus(c, g) .. ' ' .. plus(d, h)
end

local function minus(amount)
  local a, b, c, d = four(amount)
  return negated(a) .. ' ' .. negated(b) .. ' ' .. negated(c) .. ' ' .. negated(d)
end

-- Whether one amount is less than another in any part.
local function is_less(one, other)
  local mine, theirs = { four(one) }, { four(other) }
  for i = 1, 4 do
    if not is_within(mine[i], theirs[i], '0', '0', '0') then return true end
  end
  return false
end

-- Adds to the parts of an account.
local function change(key, account, spent, reserved, uncertain)
  for part, by in pairs({ [SPENT] = spent, [RESERVED] = reserved, [UNCERTAIN] = uncertain }) do
    account[part] = sum(account[part], by)
  end
  redis.call('HSET', key,
    'spent', account[SPENT], 'reserved', account[RESERVED], 'uncertain', account[UNCERTAIN])
end
