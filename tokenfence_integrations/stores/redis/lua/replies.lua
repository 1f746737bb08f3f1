-- The answer to a command that cannot be given again from what is there, should it be sent twice.
local reply_key = string.sub(owners, 1, -7) .. 'reply:' .. owner .. '-' .. number

local function note_reply(reply)
  note_number()
  redis.call('SET', reply_key, reply, 'EX', REMEMBERED)
  return reply
end
