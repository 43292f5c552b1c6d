alter table llm.feedback drop constraint feedback_says_something, drop column stars;
delete from llm.feedback where rating is null;
alter table llm.feedback alter column rating set not null;
drop index llm.usage_rollups_by_model;
drop table llm.audit_chains;
drop index llm.audit_log_by_outcome;
drop index llm.audit_log_by_kind;
drop index llm.audit_log_by_user_name;
alter table llm.audit_log drop column key_name, drop column cached;
drop table llm.responses;
delete from llm.messages where role is null;
-- Who has an id that another one has too; and a character that the type before does not take.
delete from llm.messages a using llm.messages b
  where a.id = b.id and (a.session_id, a.position) > (b.session_id, b.position);
drop index llm.messages_by_id;
create unique index messages_by_id on llm.messages (id);
alter table llm.messages
  drop column type,
  drop column bytes,
  alter column role set not null,
  alter column content type jsonb using cast(replace(cast(content as text), '\u0000', '') as jsonb);
alter table llm.sessions drop column next_position, drop column items, drop column bytes;
drop trigger identity_changed on llm.budgets;
drop trigger identity_changed on llm.user_roles;
drop trigger identity_changed on llm.grants;
drop trigger identity_changed on llm.roles;
drop trigger identity_changed on llm.api_keys;
drop trigger identity_changed on llm.users;
drop table llm.limits;
drop function llm.identity_changed();
drop table llm.identity_version;
alter table llm.api_keys drop column origin, drop column models, drop column permissions, drop column created_by;
alter table llm.users drop column origin;
