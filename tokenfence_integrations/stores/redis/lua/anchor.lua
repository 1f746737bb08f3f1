-- Keeps a moment: the first that is given stays. ARGV 3..: the account's name, the moment.

--@ begin
local anchors = string.sub(owners, 1, -7) .. 'anchors'
local first = redis.call('HSETNX', anchors, ARGV[3], ARGV[4])
return first .. '\n' .. redis.call('HGET', anchors, ARGV[3])
