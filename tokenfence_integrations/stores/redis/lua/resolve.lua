-- Replaces an uncertain charge by what was spent. ARGV 5..: its id, spent.

--@ begin
--@ once
--@ replies
--@ numbers
--@ amounts
--@ accounts
--@ changes
--@ charges
if is_repeated then return redis.call('GET', reply_key) or '0' end
local record = redis.call('HGET', charges, ARGV[5])
if not record then return '0' end
--@ whole
redis.call('HDEL', charges, ARGV[5])
local r = cjson.decode(record)
change_all(r[5], ARGV[6], NOTHING, minus(r[1]))
tell()
return note_reply('1')
