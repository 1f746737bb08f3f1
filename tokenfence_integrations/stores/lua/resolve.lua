-- Replaces an uncertain charge by what was spent. ARGV 5..: its id, spent (4).

if is_repeated then return redis.call('HGET', seen, 'reply:' .. number) or '0' end
local record = redis.call('HGET', charges, ARGV[5])
if not record then return '0' end
redis.call('HDEL', charges, ARGV[5])
local r = cjson.decode(record)
local accounts = keys_of(r[8])
add_to_all(accounts, 'uncertain', r, true)
add_to_all(accounts, 'spent', amount(6))
note_number()
redis.call('HSET', seen, 'reply:' .. number, '1')
tell()
return '1'
