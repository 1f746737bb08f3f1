-- What all scripts begin with.
--
-- KEYS: owners (a sorted set: when each one's lease is over), what this owner holds (a hash by id),
-- what of this owner was seen (a hash), uncertain charges (a hash by owner and id), the accounts.
-- ARGV: owner, epoch, number of the command, seconds of the lease, the command's own.
--
-- An account is a hash: `given`; limit_*, free_* and parts (spent_*, reserved_*, uncertain_*) by
-- quantity. What is missing is 0, or no limit. Lua's numbers are doubles, exact up to 2^53 only, so
-- amounts stay text: HINCRBY adds them up in 64 bits, and `covers` compares them digit by digit.
-- `free` is what a limit leaves after all three parts, kept so that a comparison is enough.
--
-- An answer is one text: '1' or '0' (done or not), then the states of the accounts, a line each
-- (empty: there is no such account).
-- '!n' says that the n-th account was never opened, '<' that this command's epoch is over.

local owners, held, seen, charges = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local base = string.sub(owners, 1, -7) -- all but "owners"
local owner, epoch, number, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local QUANTITIES = { 'usd', 'calls', 'input', 'output' }
local LIMITED = { 'usd', 'calls', 'tokens', 'input', 'output' }
local FREE = { 'given', 'free_usd', 'free_calls', 'free_tokens', 'free_input', 'free_output' }
local STATE = {
  'limit_usd', 'limit_calls', 'limit_tokens', 'limit_input', 'limit_output',
  'spent_usd', 'spent_calls', 'spent_input', 'spent_output',
  'reserved_usd', 'reserved_calls', 'reserved_input', 'reserved_output',
  'uncertain_usd', 'uncertain_calls', 'uncertain_input', 'uncertain_output',
  'given',
}
local REMEMBERED = 3600 -- seconds

local function negated(amount)
  if string.sub(amount, 1, 1) == '-' then return string.sub(amount, 2) end
  return '-' .. amount
end

-- Whether what is free is at least what is needed (0 or more).
local function covers(free, needed)
  if string.sub(free, 1, 1) == '-' then return false end
  if #free ~= #needed then return #free > #needed end
  return free >= needed
end

local function amount(first) -- the four texts of ARGV from there on
  return { ARGV[first], ARGV[first + 1], ARGV[first + 2], ARGV[first + 3] }
end

local function is_nothing(a)
  return a[1] == '0' and a[2] == '0' and a[3] == '0' and a[4] == '0'
end

-- The account's `given` and what is free in it; nil if it was never opened.
local function free_in(account)
  local free = redis.call('HMGET', account, unpack(FREE))
  return free[1] and free or nil
end

local function add(account, free, part, by, back) -- or take back
  for i, quantity in ipairs(QUANTITIES) do
    local more = by[i]
    if more ~= '0' then
      local less = negated(more)
      if back then more, less = less, more end
      redis.call('HINCRBY', account, part .. '_' .. quantity, more)
      local own = i < 3 and i + 1 or i + 2
      if free[own] then redis.call('HINCRBY', account, FREE[own], less) end
      if i > 2 and free[4] then redis.call('HINCRBY', account, 'free_tokens', less) end
    end
  end
end

local function add_to_all(accounts, part, by, back)
  for _, account in ipairs(accounts) do
    local free = free_in(account)
    if free then add(account, free, part, by, back) end
  end
end

local function path() -- keys of the accounts
  return { unpack(KEYS, 5) }
end

local function keys_of(names) -- from a JSON text of names
  local keys = {}
  for i, name in ipairs(cjson.decode(names)) do keys[i] = base .. 'account:' .. name end
  return keys
end

local function unopened()
  for i = 5, #KEYS do
    if redis.call('HEXISTS', KEYS[i], 'given') == 0 then return '!' .. (i - 4) end
  end
end

local function answer(done)
  local lines = { done and '1' or '0' }
  for i = 5, #KEYS do
    local state = redis.call('HMGET', KEYS[i], unpack(STATE))
    local line = ''
    if state[#STATE] then
      for j = 1, #STATE - 1 do
        if not state[j] then state[j] = j <= 5 and 'n' or '0' end
      end
      line = table.concat(state, ' ', 1, #STATE - 1)
    end
    lines[i - 3] = line
  end
  return table.concat(lines, '\n')
end

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function as_time(seconds)
  return string.format('%.6f', seconds)
end

local function tell()
  redis.call('PUBLISH', base .. 'freed', '')
end

-- Exactly once: see wire.py. Nothing is written before the command's own first write, which a server
-- without memory refuses or lets pass.

local of_seen = redis.call('HMGET', seen, 'epoch', 'number')
if of_seen[1] and tonumber(of_seen[1]) > tonumber(epoch) then return '<' end
local is_repeated = of_seen[2] and tonumber(of_seen[2]) >= tonumber(number)

local function note_epoch()
  if of_seen[1] ~= epoch then
    redis.call('HSET', seen, 'epoch', epoch)
    redis.call('EXPIRE', seen, REMEMBERED)
  end
end

local function note_number()
  redis.call('HSET', seen, 'epoch', epoch, 'number', number)
  redis.call('EXPIRE', seen, REMEMBERED)
end

-- Leases

local function charge(id, a, at, what, names, charged)
  redis.call('HSET', charges, id, cjson.encode({ a[1], a[2], a[3], a[4], at, what, names, charged }))
end

-- Charges as uncertain what is held by others whose lease is over.
local function expire()
  local over = redis.call('ZRANGEBYSCORE', owners, '-inf', as_time(now()))
  local any = false
  for _, other in ipairs(over) do
    if other ~= owner then
      local theirs = base .. 'held:' .. other
      local all = redis.call('HGETALL', theirs)
      redis.call('ZREM', owners, other)
      redis.call('DEL', theirs)
      for i = 1, #all, 2 do
        local r = cjson.decode(all[i + 1])
        local accounts = keys_of(r[7])
        add_to_all(accounts, 'reserved', r, true)
        add_to_all(accounts, 'uncertain', r)
        charge(other .. '-' .. all[i], r, r[5], r[6], r[7], r[7])
        any = true
      end
    end
  end
  if any then tell() end
end

-- Charges of these accounts (by name) are theirs no more.
local function forget_charges(gone)
  local all = redis.call('HGETALL', charges)
  for i = 1, #all, 2 do
    local r = cjson.decode(all[i + 1])
    local left, fewer = {}, false
    for _, name in ipairs(cjson.decode(r[8])) do
      if gone[name] then fewer = true else left[#left + 1] = name end
    end
    if #left == 0 then
      redis.call('HDEL', charges, all[i])
    elseif fewer then
      charge(all[i], r, r[5], r[6], r[7], cjson.encode(left))
    end
  end
end
