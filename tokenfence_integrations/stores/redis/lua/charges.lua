-- Accounts by name, charges, and telling those who wait.

local base = string.sub(owners, 1, -7) -- all but "owners"

local function key_of(name)
  return base .. 'account:' .. name
end

-- The same for all accounts of a JSON text of names, as far as they still exist.
local function change_all(names, spent, reserved, uncertain)
  for _, name in ipairs(cjson.decode(names)) do
    local key = key_of(name)
    local account = account_of(key)
    if account then change(key, account, spent, reserved, uncertain) end
  end
end

-- Have those look who wait for room in an account or above it; without one, all in the tree.
local function tell(key)
  redis.call('PUBLISH', base .. 'freed', key and string.sub(key, #key_of('') + 1) or '')
end

-- What is held: its amount, and all else as JSON.
local function parted(record)
  return string.match(record, '^(%S+ %S+ %S+ %S+) (.*)$')
end

-- What is held: its amount, what it is for, the names of its accounts, whether it is idle.
local function unpacked(record)
  local amount, rest = parted(record)
  return amount, unpack(cjson.decode(rest))
end

-- Keeps a charge: what for, the accounts of its path, and those in which it is charged.
local function charge(id, amount, at, what, names, charged)
  redis.call('HSET', charges, id, cjson.encode({ amount, at, what, names, charged }))
end
