-- Keeps a moment: the first that is given stays. ARGV 5..: the account's name, the moment.

--@ begin
local anchors = string.sub(owners, 1, -7) .. 'anchors'
local first = redis.call('HSETNX', anchors, ARGV[5], ARGV[6])
return first .. '\n' .. redis.call('HGET', anchors, ARGV[5])
