-- Forgets what is spent and uncertain; answered with the states before. ARGV 5: names.

local missing = unopened()
if missing then return missing end
if is_repeated then
  return redis.call('HGET', seen, 'reply:' .. number) or answer(true)
end
local before = answer(true)
local gone = {}
for i, name in ipairs(cjson.decode(ARGV[5])) do
  local account = KEYS[4 + i]
  local free = free_in(account)
  for _, part in ipairs({ 'spent', 'uncertain' }) do
    local of = redis.call('HMGET', account,
      part .. '_usd', part .. '_calls', part .. '_input', part .. '_output')
    for j = 1, 4 do of[j] = of[j] or '0' end
    add(account, free, part, of, true)
  end
  gone[name] = true
end
forget_charges(gone)
note_number()
redis.call('HSET', seen, 'reply:' .. number, before)
tell()
return before
