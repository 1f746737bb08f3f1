-- Does what the scripts do, to a key of its own: whoever may not, learns it before anything is half done.

local key = KEYS[1]
redis.call('DEL', key) -- a server without memory lets pass whatever comes after this
redis.call('HSET', key, 'field', '1')
redis.call('HSETNX', key, 'field', '1')
redis.call('HGET', key, 'field')
redis.call('HMGET', key, 'field')
redis.call('HGETALL', key)
redis.call('HEXISTS', key, 'field')
redis.call('HDEL', key, 'field')
redis.call('ZADD', key, redis.call('TIME')[1], 'member')
redis.call('ZRANGEBYSCORE', key, '-inf', '0')
redis.call('ZREM', key, 'member')
redis.call('SET', key, '1', 'EX', 1)
redis.call('GET', key)
redis.call('EXISTS', key)
redis.call('EXPIRE', key, 1)
redis.call('DEL', key)
redis.call('PUBLISH', key, '')
return '1'
