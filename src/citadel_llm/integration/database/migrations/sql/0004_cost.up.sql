-- What it cost, at the prices of the time, in the site's currency: prices change, and what was counted stays.
alter table llm.usage_rollups
  add column cost double precision not null default 0 check (cost >= 0);
