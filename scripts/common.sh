# shellcheck shell=bash
# What the scripts share; sourced, never run. Installs what is missing, inside the project where possible.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1

# The version is bound to the crate's in Cargo.lock; the test runner refuses any other.
wasm_bindgen_version=$(sed -n '/^name = "wasm-bindgen"$/{n;s/^version = "\(.*\)"$/\1/p;}' Cargo.lock)

say() { printf '%s\n' "$*" >&2; }

# need <command> <how to get it>
need() {
  command -v "$1" >/dev/null 2>&1 && return
  say "$1 is missing: $2"
  return 1
}

need_rust() {
  need cargo "install Rust by https://rustup.rs" || return
  local target
  for target in "$@"; do
    [ -d "$(rustc --print sysroot)/lib/rustlib/$target" ] && continue
    say "adding the Rust target $target"
    rustup target add "$target" >&2 || return
  done
}

# need_debian <command> [<package>]: installed where that is possible; the package is mostly called as the command.
need_debian() {
  local package=${2:-$1}
  command -v "$1" >/dev/null 2>&1 && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    say "installing the Debian package $package"
    { apt-get install -qq -y "$package" || { apt-get update -qq && apt-get install -qq -y "$package"; }; } >&2
  fi
  need "$1" "install the package $package"
}

# Prometheus' programs, for the tests of metrics: unpacked from Debian's package, which would start a server.
need_prometheus() {
  [ -x .tools/prometheus/usr/bin/promtool ] && return
  need apt-get "install promtool and prometheus, and name them in PROMTOOL and PROMETHEUS" && need dpkg "it comes with apt-get" || return
  say "unpacking the Debian package prometheus into .tools (once)"
  local folder
  folder=$(mktemp -d) || return
  (cd "$folder" && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; }) >&2 &&
    mkdir -p .tools/prometheus && dpkg -x "$folder"/prometheus_*.deb .tools/prometheus
  local status=$?
  rm -r "$folder"
  return "$status"
}

need_node() { need node "install Node.js 20 or newer"; }

need_wasm_bindgen() {
  local tool=$root/.tools/bin/wasm-bindgen-test-runner
  [ -x "$tool" ] && "$tool" --version 2>/dev/null | grep -qF "$wasm_bindgen_version" && return
  say "installing wasm-bindgen-cli $wasm_bindgen_version into .tools (once, some minutes)"
  cargo install wasm-bindgen-cli --version "$wasm_bindgen_version" --root "$root/.tools" --no-track --force >&2
}

# Whether the workspace has the package $1.
has_package() {
  cargo metadata --no-deps --format-version 1 2>/dev/null | grep -q "\"name\":\"$1\",\"version\""
}

wasm_opt=$root/.tools/wasm-opt/node_modules/.bin/wasm-opt

need_wasm_opt() {
  cmp -s scripts/wasm-opt/package-lock.json .tools/wasm-opt/package-lock.json && [ -x "$wasm_opt" ] && return
  need_node && need npm "it comes with Node.js" || return
  say "installing wasm-opt into .tools (once)"
  mkdir -p .tools/wasm-opt
  cp scripts/wasm-opt/package.json .tools/wasm-opt/
  cp scripts/wasm-opt/package-lock.json .tools/wasm-opt/
  (cd .tools/wasm-opt && npm ci --no-audit --no-fund --loglevel=error >&2)
}

# The filter for Envoy. Its start-up line names the commit that it was built from.
build_filter() {
  need_rust wasm32-wasip1 && need_wasm_opt || return
  AIRFLOW_ENVOY_COMMIT=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown) \
    cargo build --release --target wasm32-wasip1 -p airflow-envoy-plugin || return
  # Smaller, and no faster: -O3 is not faster either, and larger. Never --traps-never-happen: it takes
  # checks away whose failure has to be a trap. It takes most of a minute, so what was optimised once is kept.
  local release=target/wasm32-wasip1/release sum
  sum=$(cat "$release/deps/airflow_envoy.wasm" scripts/exports.json | sha256sum)
  if [ "$(cat "$release/optimised.sum" 2>/dev/null)" != "$sum" ]; then
    say "making the filter smaller (most of a minute)"
    # The features are those that rustc itself uses for this target.
    local features=(--enable-bulk-memory --enable-mutable-globals --enable-nontrapping-float-to-int
      --enable-sign-ext --enable-reference-types --enable-multivalue)
    # What the SDK exports and the filter has no use for goes: Envoy would call it for every request.
    "${wasm_opt/%wasm-opt/wasm-metadce}" "${features[@]}" --graph-file scripts/exports.json \
      "$release/deps/airflow_envoy.wasm" -o "$release/called.wasm" >/dev/null &&
      "$wasm_opt" -Os "${features[@]}" "$release/called.wasm" -o "$release/optimised.wasm" || return
    printf '%s' "$sum" >"$release/optimised.sum"
  fi
  # Cargo's own file is a link to the one among `deps`, which must stay as it is.
  cp --remove-destination "$release/optimised.wasm" "$release/airflow_envoy.wasm"
}
