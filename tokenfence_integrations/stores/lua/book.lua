-- Adds to what is spent. ARGV 5..: spent (4).

local missing = unopened()
if missing then return missing end
if is_repeated then return answer(true) end
add_to_all(path(), 'spent', amount(5))
note_number()
return answer(true)
