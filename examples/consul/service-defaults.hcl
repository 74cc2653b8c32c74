# consul config write service-defaults.hcl
#
# Consul's Envoy beside `orders` loads the filter. Needs the clusters of proxy-defaults.hcl.

Kind     = "service-defaults"
Name     = "orders"
Protocol = "http" # the filter is one of HTTP: of a tcp service Consul's Envoy has no place for it

EnvoyExtensions = [
  {
    Name = "builtin/wasm"
    # Without it Consul sets `fail_open: true`, and requests pass when the filter fails.
    Required = true
    Arguments = {
      Protocol     = "http"
      ListenerType = "inbound"
      PluginConfig = {
        Name   = "airflow-envoy"
        RootID = "airflow_envoy"
        VmConfig = {
          VmID    = "airflow-envoy"
          Runtime = "v8"
          Code = {
            Local = { Filename = "/etc/airflow-envoy/airflow_envoy.wasm" }
          }
          # Only the names: a value here would stand in Consul's catalog for all to read.
          EnvironmentVariables = {
            HostEnvKeys = ["AIRFLOW_ENVOY_AUDIT_KEY", "CONSUL_HTTP_TOKEN"]
          }
        }
        Configuration = <<CONFIGURATION
{
  "issuers": [
    {
      "name": "idp",
      "issuer": "https://idp.internal",
      "audiences": ["orders"],
      "token_types": ["at+jwt"],
      "jwks": { "cluster": "airflow-envoy-idp", "uri": "https://idp.internal/jwks" }
    }
  ],
  "airflow": {
    "issuers": [
      {
        "name": "airflow",
        "issuer": "https://airflow.internal",
        "audiences": ["orders"],
        "jwks": { "cluster": "airflow-envoy-airflow", "uri": "https://airflow.internal/airflow-envoy/jwks.json" }
      }
    ]
  },
  "policy": {
    "sources": [
      {
        "name": "main",
        "consul_kv": { "cluster": "airflow-envoy-consul", "key": "airflow-envoy/policy/orders", "token_env": "CONSUL_HTTP_TOKEN" }
      }
    ]
  },
  "audit": { "key": { "jwk_env": "AIRFLOW_ENVOY_AUDIT_KEY" } }
}
CONFIGURATION
      }
    }
  }
]
