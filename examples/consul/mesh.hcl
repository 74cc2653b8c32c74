# consul config write mesh.hcl
#
# What the filter judges must be what the service gets: no second reading of a path or a header. Path normalisation
# itself is on unless it is switched off. Consul's own L7 intentions need the same.

Kind = "mesh"

HTTP {
  Incoming {
    RequestNormalization {
      MergeSlashes                  = true
      PathWithEscapedSlashesAction  = "REJECT_REQUEST"
      HeadersWithUnderscoresAction  = "REJECT_REQUEST"
    }
  }
}

TLS {
  Incoming {
    TLSMinVersion = "TLSv1_2"
  }
}
