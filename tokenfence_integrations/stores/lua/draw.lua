-- Books a part of a reservation, and keeps another.
-- ARGV 5..: id, spent (4), uncertain (4), kept (4), what the uncertain part is for, names.

--@ begin
--@ numbers
--@ accounts
--@ amounts
--@ answer
--@ leases
--@ charges
if is_repeated then return redis.call('GET', reply_key) or answer(true) end
local id, spent, uncertain, kept = ARGV[5], amount(6), amount(10), amount(14)
local what, names = ARGV[18], ARGV[19]
local name = owner .. '-' .. id
local record = redis.call('HGET', held, id)
redis.call('HDEL', held, id) -- a server without memory lets pass whatever comes after this
local r, by, kept_for
if record then
  r = cjson.decode(record)
  by, kept_for = sum(kept, minus(r)), r[5]
else
  record = redis.call('HGET', charges, name)
  if not record then return note_reply(answer(false)) end
  -- Its lease was over, and somebody has charged it as uncertain: it is there again.
  r = cjson.decode(record)
  redis.call('HDEL', charges, name)
  change_all(r[8], nil, nil, minus(r))
  by, kept_for = kept, r[6]
end
for i = 5, #KEYS do
  local account = account_of(KEYS[i])
  if account then change(KEYS[i], account, spent, by, uncertain) end
end
redis.call('HSET', held, id,
  cjson.encode({ kept[1], kept[2], kept[3], kept[4], kept_for, names }))
if not of_seen[3] then renew() end
if not is_nothing(uncertain) then
  charge(name .. '-' .. number, uncertain, as_time(now()), what, names, names)
end
note_number()
if is_less(sum(sum(kept, spent), uncertain), r) then tell() end
return answer(true)
