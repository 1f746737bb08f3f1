-- Books a part of a reservation, and keeps another.
-- ARGV 5..: id, spent, uncertain, kept, what the uncertain part is for, names.

--@ begin
--@ once
--@ replies
--@ numbers
--@ amounts
--@ accounts
--@ changes
--@ answer
--@ leases
--@ charges
if is_repeated then return redis.call('GET', reply_key) or answer(true) end
local id, spent, uncertain, kept, what, names = unpack(ARGV, 5, 10)
--@ whole
local name = owner .. '-' .. id
local record = redis.call('HGET', held, id)
redis.call('HDEL', held, id) -- a server without memory lets pass whatever comes after this
local reserved, by, kept_for
if record then
  reserved, kept_for = unpacked(record)
  by = sum(kept, minus(reserved))
else
  record = redis.call('HGET', charges, name)
  if not record then return note_reply(answer(false)) end
  -- Its lease was over, and somebody has charged it as uncertain: it is there again.
  redis.call('HDEL', charges, name)
  local r = cjson.decode(record)
  reserved, by, kept_for = r[1], kept, r[3]
  change_all(r[5], NOTHING, NOTHING, minus(reserved))
end
for i = 5, #KEYS do
  local account = account_of(KEYS[i])
  if account then change(KEYS[i], account, spent, by, uncertain) end
end
redis.call('HSET', held, id, kept .. ' ' .. cjson.encode({ kept_for, names }))
if not of_seen[3] then renew() end
if uncertain ~= NOTHING then
  charge(name .. '-' .. number, uncertain, as_time(now()), what, names, names)
end
note_number()
if is_less(sum(sum(kept, spent), uncertain), reserved) then tell(KEYS[5]) end
return answer(true)
