-- Replaces an uncertain charge by what was spent. ARGV 3..: its id, spent.

--@ begin
--@ numbers
--@ accounts
--@ amounts
--@ answer
--@ charges
if is_repeated then return redis.call('GET', reply_key) or '0' end
local record = redis.call('HGET', charges, ARGV[3])
if not record then return '0' end
--@ whole
redis.call('HDEL', charges, ARGV[3])
local r = cjson.decode(record)
change_all(r[5], ARGV[4], NOTHING, minus(r[1]))
tell()
return note_reply('1')
