-- While a cluster moves a slot to another server, a script fails at the first key that is not there, and what it
-- has written by then stays. So it looks for one that never is before it writes where such keys may follow.
redis.call('EXISTS', base .. 'moving')
