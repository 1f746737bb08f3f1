-- Accounts, as lists of their fields.

local FIELDS = {
  'limit_usd', 'limit_calls', 'limit_tokens', 'limit_input', 'limit_output',
  'spent_usd', 'spent_calls', 'spent_input', 'spent_output',
  'reserved_usd', 'reserved_calls', 'reserved_input', 'reserved_output',
  'uncertain_usd', 'uncertain_calls', 'uncertain_input', 'uncertain_output',
  'given',
}
local SPENT, RESERVED, UNCERTAIN, GIVEN = 5, 9, 13, 18

-- The fields of an account; nil if it was never opened.
local function account_of(key)
  local account = redis.call('HMGET', key, unpack(FIELDS))
  if not account[GIVEN] then return nil end
  for i = 6, 17 do account[i] = account[i] or '0' end
  return account
end

-- Adds amounts (or nil) to the parts of an account.
local function change(key, account, spent, reserved, uncertain)
  local written = {}
  local function add(part, by)
    for i = 1, 4 do
      if by[i] ~= '0' then
        local value = plus(account[part + i], by[i])
        account[part + i] = value
        written[#written + 1] = FIELDS[part + i]
        written[#written + 1] = value
      end
    end
  end
  if spent then add(SPENT, spent) end
  if reserved then add(RESERVED, reserved) end
  if uncertain then add(UNCERTAIN, uncertain) end
  if #written > 0 then redis.call('HSET', key, unpack(written)) end
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
