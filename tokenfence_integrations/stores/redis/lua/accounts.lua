-- Accounts, as lists of their fields.

local LIMITS, SPENT, RESERVED, UNCERTAIN = 1, 2, 3, 4

-- The fields of an account; nil if it was never opened.
local function account_of(key)
  local account = redis.call('HMGET', key, 'limits', 'spent', 'reserved', 'uncertain')
  if account[1] then return account end
end

-- All accounts of the command; else which of them was never opened, as an answer.
local function accounts_of_command()
  local accounts = {}
  for i = 5, #KEYS do
    local account = account_of(KEYS[i])
    if not account then return nil, '!' .. (i - 4) end
    accounts[i - 4] = account
  end
  return accounts
end
