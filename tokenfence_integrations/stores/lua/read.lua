-- Reports the states.

local missing = unopened()
if missing then return missing end
expire()
return answer(true)
