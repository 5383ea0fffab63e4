"""The embedded Kubernetes API: one generic store over SQLite, with types as data.

A reading order. `data/resources.toml` is the table of types and `resource` its values; `schema` compiles what
`data/schemas.json.gz` and `data/overlay.toml` say of them, and `admission` brings objects into that form.
`collection` and `store` keep objects, in memory and on disk. `lifecycle` is what happens to an object, with
`defaults`, `rules` (`podrules`, `servicerules`, `netrules`, `syntax`) and `deletion`; `service` and `allocation`
complete Services, `podadmission` completes pods. Who manages which field is `fieldmanager`, on `ownership` and
`fieldset`. `garbage` and `expiry` are the server's own controllers, `customresource` makes types of definitions.
`request`, `rest`, `watch`, `subresource` and `review` are the API over HTTP; `patch`, `jsonpatch`, `selector`,
`protobuf`, `form`, `table` and `cells` what they speak; `discovery` and `openapi` tell clients what there is.
`authentication` and `certificates` say who is who. `server` puts it together.

What it does not do: authorization (RBAC objects are stored, not evaluated), CEL rules (a definition that has some
is answered with a warning), quotas and limit ranges, admission webhooks, conversion webhooks.
"""
