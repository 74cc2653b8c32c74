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

# need_debian <package>: its command of the same name, installed where that is possible.
need_debian() {
  command -v "$1" >/dev/null 2>&1 && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    say "installing the Debian package $1"
    { apt-get install -qq -y "$1" || { apt-get update -qq && apt-get install -qq -y "$1"; }; } >&2
  fi
  need "$1" "install the package $1"
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

# The filter for Envoy. Its start-up line names the commit that it was built from.
build_filter() {
  need_rust wasm32-wasip1 || return
  AIRFLOW_ENVOY_COMMIT=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown) \
    cargo build --release --target wasm32-wasip1 -p airflow-envoy-plugin
}
