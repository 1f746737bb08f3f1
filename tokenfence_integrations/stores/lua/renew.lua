-- Says that this owner lives.

redis.call('ZADD', owners, as_time(now() + lease), owner)
note_epoch()
return '1'
