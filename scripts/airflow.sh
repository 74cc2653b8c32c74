# shellcheck shell=bash
# Airflow's virtual environments, in .testbed; sourced after common.sh, never run.

airflow_versions=(3.3.2 2.11.2)

# The Python to make them with: AIRFLOW_PYTHON, or the first on the path of a version that Airflow runs on.
airflow_python() {
  local python
  for python in ${AIRFLOW_PYTHON:+"$AIRFLOW_PYTHON"} python3 python3.12 python3.11 python3.10; do
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      command -v "$python"
      return
    fi
  done
  say "Airflow needs Python 3.10, 3.11 or 3.12 with venv (packages python3 and python3-venv); this is" \
    "$(python3 --version 2>/dev/null || echo 'no Python'): install one, or name it in AIRFLOW_PYTHON"
  return 1
}

# airflow_venv <folder> <requirements…>: a virtual environment with these and with this repository's package. The stamp,
# which is made last, is of all that it was made from.
airflow_venv() {
  local folder=$1 python sum
  shift
  python=$(airflow_python) || return
  sum=$(cat "$@" airflow/pyproject.toml | sha256sum)
  sum="${sum%% *} $python $("$python" --version)"
  [ "$(cat "$folder/stamp" 2>/dev/null)" = "$sum" ] && return
  say "making ${folder#"$root/"} (once, a minute or two)"
  rm -rf "$folder"
  mkdir -p "${folder%/*}"
  local started=$SECONDS options=(--quiet --disable-pip-version-check --no-input)
  "$python" -m venv "$folder" || return
  "$folder/bin/pip" install "${options[@]}" "${@/#/--requirement=}" >&2 || return
  # Its own dependencies are among the pinned, and what builds it is, too.
  "$folder/bin/pip" install "${options[@]}" --no-deps --no-build-isolation --editable airflow >&2 || return
  echo "$sum" >"$folder/stamp"
  say "  $((SECONDS - started)) s"
}

# What lints and tests the package, without Airflow.
need_airflow_development() {
  airflow_venv "$root/.testbed/airflow-development" airflow/requirements/development.txt
}

# Airflow of every tested version. Where it cannot be had, end-to-end tests are skipped and say why.
install_airflow() {
  local version files
  airflow_python >/dev/null || { airflow_python 2>"$root/.testbed/no-airflow"; return 1; }
  for version in "${airflow_versions[@]}"; do
    files=("airflow/requirements/airflow-$version.txt" airflow/requirements/development.txt)
    [ "$version" = 3.3.2 ] && files+=(testbed/airflow/requirements-postgres.txt)
    airflow_venv "$root/.testbed/airflow-$version" "${files[@]}" || return
  done
  rm -f "$root/.testbed/no-airflow"
  touch "$root/.testbed/airflow-3.3.2/postgres.stamp"
  install_postgres
}

# PostgreSQL serves one end-to-end test, which is skipped without it.
install_postgres() {
  local made=/etc/postgresql-common/createcluster.d/airflow-envoy.conf
  [ -n "${POSTGRES_BIN:-}" ] || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    say "installing the Debian package postgresql"
    # No server of the machine's own: each test makes its database.
    mkdir -p "${made%/*}" && echo 'create_main_cluster = false' >"$made"
    { apt-get install -qq -y postgresql || { apt-get update -qq && apt-get install -qq -y postgresql; }; } >&2 || true
  fi
  compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null ||
    say "no PostgreSQL, its test will be skipped: install the package postgresql, or set POSTGRES_BIN"
}
