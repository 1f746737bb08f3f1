-- Replaces an uncertain charge by what was spent. ARGV 5..: its id, spent (4).

--@ begin
--@ numbers
--@ accounts
--@ amounts
--@ answer
--@ charges
if is_repeated then return redis.call('HGET', seen, 'reply:' .. number) or '0' end
local record = redis.call('HGET', charges, ARGV[5])
if not record then return '0' end
redis.call('HDEL', charges, ARGV[5])
local r = cjson.decode(record)
change_all(r[8], amount(6), nil, minus(r))
note_number()
redis.call('HSET', seen, 'reply:' .. number, '1')
tell()
return '1'
