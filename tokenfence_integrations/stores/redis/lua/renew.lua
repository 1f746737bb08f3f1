-- Says that this owner lives.

--@ begin
--@ leases
renew()
return '1'
