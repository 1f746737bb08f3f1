-- Replaces an uncertain charge by what was spent. ARGV 5..: its id, spent (4).

--@ begin
--@ numbers
--@ accounts
--@ amounts
--@ answer
--@ charges
if is_repeated then return redis.call('GET', reply_key) or '0' end
local record = redis.call('HGET', charges, ARGV[5])
if not record then return '0' end
redis.call('HDEL', charges, ARGV[5])
local r = cjson.decode(record)
change_all(r[8], amount(6), nil, minus(r))
tell()
return note_reply('1')
