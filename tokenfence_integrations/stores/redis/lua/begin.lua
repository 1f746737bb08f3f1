-- What a script is given, and how it answers.
--
-- KEYS: owners (a sorted set: when each one's lease is over), what this owner holds (a hash by id),
-- what of this owner was seen (a hash), uncertain charges (a hash by owner and id), the accounts.
-- ARGV: owner, seconds of its lease, epoch, number of the command; the command's own.
--
-- Few texts with several numbers each, because each field and call costs more than to take a text
-- apart. An amount is one: dollars, calls, input and output tokens. So are limits: dollars, calls,
-- tokens, input and output tokens, 'n' for none.
--
-- An account is a hash of texts: `given` (the limits as they were given), `limits`, and the amounts
-- `spent`, `reserved` and `uncertain`. What is held is the amount, then what it is for, the names of
-- the accounts, and whether it is idle, as JSON.
--
-- An answer is one text: '1' or '0' (done or not), then the states of the accounts, a line each
-- (empty: there is no such account). '!n' says that the n-th account was never opened, '<' that this
-- command's epoch is over. The number 1 says no more than that it is done.
--
-- "--@ name" stands for the file name.lua. Some stand where they are rarely come by: what a script
-- does not need costs it nothing, and each function that it makes costs something in each run.

local owners, held, seen, charges = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local owner, lease, epoch, number = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local REMEMBERED = 3600 -- seconds

-- Exactly once: see remote/wire.py. Nothing is written before the command's own first write, which a server
-- without memory refuses or lets pass.

local of_seen = redis.call('HMGET', seen, 'epoch', 'number', 'alive')
local is_of_seen_epoch = of_seen[1] == epoch
if not is_of_seen_epoch and of_seen[1] and tonumber(of_seen[1]) > tonumber(epoch) then
  return '<'
end
