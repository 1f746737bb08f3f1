-- Has no command of an epoch before this one's applied any more.
if not is_of_seen_epoch then
  redis.call('HSET', seen, 'epoch', epoch)
  redis.call('EXPIRE', seen, REMEMBERED)
end
