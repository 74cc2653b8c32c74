# consul config write proxy-defaults.hcl
#
# The clusters that the filter asks, in the bootstrap that `consul connect envoy` writes. Several are separated by
# commas, as within a JSON array. Their names must not be those of services.

Kind = "proxy-defaults"
Name = "global"

Config {
  protocol = "http"

  envoy_extra_static_clusters_json = <<CLUSTERS
{
  "name": "airflow-envoy-idp",
  "type": "STRICT_DNS",
  "connect_timeout": "1s",
  "load_assignment": {
    "cluster_name": "airflow-envoy-idp",
    "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": { "socket_address": { "address": "idp.internal", "port_value": 443 } } } }] }]
  },
  "transport_socket": {
    "name": "envoy.transport_sockets.tls",
    "typed_config": {
      "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
      "sni": "idp.internal",
      "common_tls_context": {
        "validation_context": {
          "trusted_ca": { "filename": "/etc/ssl/certs/ca-certificates.crt" },
          "match_typed_subject_alt_names": [{ "san_type": "DNS", "matcher": { "exact": "idp.internal" } }]
        }
      }
    }
  }
},
{
  "name": "airflow-envoy-airflow",
  "type": "STRICT_DNS",
  "connect_timeout": "1s",
  "load_assignment": {
    "cluster_name": "airflow-envoy-airflow",
    "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": { "socket_address": { "address": "airflow.internal", "port_value": 443 } } } }] }]
  },
  "transport_socket": {
    "name": "envoy.transport_sockets.tls",
    "typed_config": {
      "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
      "sni": "airflow.internal",
      "common_tls_context": {
        "validation_context": {
          "trusted_ca": { "filename": "/etc/ssl/certs/ca-certificates.crt" },
          "match_typed_subject_alt_names": [{ "san_type": "DNS", "matcher": { "exact": "airflow.internal" } }]
        }
      }
    }
  }
},
{
  "name": "airflow-envoy-consul",
  "type": "STATIC",
  "connect_timeout": "1s",
  "load_assignment": {
    "cluster_name": "airflow-envoy-consul",
    "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 8500 } } } }] }]
  },
  "circuit_breakers": { "thresholds": [{ "max_connections": 16, "max_pending_requests": 16, "max_requests": 16, "max_retries": 0 }] }
}
CLUSTERS
}
