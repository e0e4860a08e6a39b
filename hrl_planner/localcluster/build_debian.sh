#!/usr/bin/env bash
# Builds the components of a Kubernetes 1.20.2 control plane from Debian bookworm's source package,
# with Debian's Go 1.19, and takes etcd from Debian's etcd-server.
#
#   build_debian.sh DEST        binaries land in DEST, all of them or none
#
# Nothing is installed on the system: packages are fetched by apt with settings of their own, checked
# against the signed index, and unpacked beside DEST. Needed on the machine: apt-get, dpkg-deb,
# dpkg-source (package dpkg-dev), Debian's archive keyring, and flock.
# GOFLAGS=-p=1 and GOMAXPROCS=1 keep the compiler on one core. DEBIAN_MIRROR overrides the mirror.
# An interrupted build goes on where it was.
set -euo pipefail

readonly COMPONENTS=(kube-apiserver kube-controller-manager kube-scheduler)
readonly UPSTREAM=1.20.2
readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

dest=$(realpath -m "${1:?usage: build_debian.sh DEST}")
work=$dest.work
tree=$work/gopath/src/k8s.io/kubernetes

say() { printf 'kube build, %4d s: %s\n' "$SECONDS" "$*" >&2; }
fail() { say "FAILED: $*"; exit 1; }

require() {
  local tool
  for tool in apt-get dpkg-deb dpkg-source flock; do
    command -v "$tool" >/dev/null || fail "$tool is missing; on Debian: apt-get install dpkg-dev util-linux"
  done
  [ -e "$KEYRING" ] || fail "$KEYRING is missing; on Debian: apt-get install debian-archive-keyring"
}

complete() {
  local name
  for name in etcd "${COMPONENTS[@]}"; do [ -x "$dest/$name" ] || return 1; done
}

# apt as this machine is set up for the network, but with bookworm's archive and state of its own:
# the machine's lists stay untouched, and the release it runs does not matter.
mirror() {
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    grep -m 1 '/debian/$' || echo http://deb.debian.org/debian/
}

private_apt() {
  apt-get -qq -o Dir::Etc::SourceList="$work/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$work/apt/lists" -o Dir::Cache="$work/apt/cache" \
    -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none "$@"
}

fetch() {
  [ ! -e "$work/fetched" ] || return 0
  local base=${DEBIAN_MIRROR:-$(mirror)} kind
  base=${base%/}
  mkdir -p "$work"/apt/{lists/partial,cache/archives/partial} "$work/download"
  for kind in deb deb-src; do
    echo "$kind [signed-by=$KEYRING] $base bookworm main"
    echo "$kind [signed-by=$KEYRING] $base-security bookworm-security main"
  done >"$work/apt/sources.list"
  say "fetching Go, etcd and the source of Kubernetes (about 130 MB) from $base; nothing is installed"
  private_apt update
  (
    cd "$work/download"
    private_apt download golang-1.19-go golang-1.19-src etcd-server golang-github-modern-go-reflect2-dev
    private_apt source --download-only kubernetes
  )
  touch "$work/fetched"
}

unpack() {
  [ ! -e "$work/unpacked" ] || return 0
  say "unpacking"
  local file
  for file in "$work"/download/*.deb; do dpkg-deb -x "$file" "$work/root"; done
  rm -rf "$tree"
  mkdir -p "$(dirname "$tree")"
  # apt has checked the files against its signed index.
  dpkg-source --no-check -x "$work"/download/kubernetes_*"really$UPSTREAM"*.dsc "$tree" >/dev/null
  patch_for_go_1_19
  touch "$work/unpacked"
}

# The release was written for Go 1.15; two of its libraries rely on what Go has changed since.
patch_for_go_1_19() {
  # reflect2 1.0.1 iterates over maps through private functions whose signature changed in Go 1.18
  # and crashes on the first custom resource; Debian packages the fixed 1.0.2.
  local reflect2=vendor/github.com/modern-go/reflect2
  rm -r "${tree:?}/$reflect2"
  cp -r "$work/root/usr/share/gocode/src/github.com/modern-go/reflect2" "$tree/$reflect2"
  # Schema validation asks whether a value equals its zero value by comparing two reflect.Value
  # structs. Never true under Go 1.15; now true of the empty string, and `default: ""` is refused.
  local file
  for file in k8s.io/kube-openapi/pkg/validation/validate github.com/go-openapi/validate; do
    file=$tree/vendor/$file/type.go
    sed -i -E 's/if data == nil \|\| reflect\.DeepEqual\(.*\) \{$/if data == nil {/' "$file"
    grep -q 'if data == nil {' "$file" || fail "$file is not as expected"
    ! grep -q 'data == nil || reflect.DeepEqual' "$file" || fail "$file could not be patched"
  done
}

# The OpenAPI definitions are the one Go file that the source package leaves to be generated.
generate_openapi() {
  local target=pkg/generated/openapi/zz_generated.openapi.go packages
  [ ! -s "$target" ] || return 0
  say "generating the OpenAPI definitions"
  go build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
  packages=$(
    grep -rl --include='*.go' '^// *+k8s:openapi-gen=' pkg cmd plugin staging/src | xargs -n 1 dirname |
      sed 's|^staging/src|vendor|' | grep -v -e vendor/k8s.io/code-generator -e vendor/k8s.io/sample-apiserver |
      LC_ALL=C sort -u | sed 's|^|k8s.io/kubernetes/|' | paste -s -d ,
  )
  "$work/openapi-gen" --logtostderr --input-dirs "$packages" \
    --output-package k8s.io/kubernetes/pkg/generated/openapi --output-file-base zz_generated.openapi \
    --output-base "$work/gopath/src" --report-filename "$work/violations" \
    --go-header-file vendor/k8s.io/code-generator/hack/boilerplate.go.txt
}

compile() {
  local flags="-s -w" package name targets=() total
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    package=k8s.io/kubernetes/vendor/$package
    flags+=" -X $package.gitVersion=v$UPSTREAM -X $package.gitMajor=1 -X $package.gitMinor=20"
    flags+=" -X $package.gitTreeState=archive -X $package.gitCommit=debian"
  done
  for name in "${COMPONENTS[@]}"; do targets+=("./cmd/$name"); done
  total=$(go list -deps -tags providerless "${targets[@]}" | wc -l)
  say "compiling ${COMPONENTS[*]}: at most $total packages; 3 to 10 minutes"
  # `providerless` leaves out the clients of four clouds. -v names each package as it is compiled.
  go build -v -tags providerless -ldflags "$flags" -o "$work/bin/" "${targets[@]}" 2>&1 | progress "$total"
}

progress() {
  local line count=0
  while IFS= read -r line; do
    if [[ $line =~ ^[A-Za-z0-9./_-]+$ ]]; then
      count=$((count + 1))
      if ((count % 100 == 0)); then say "$count packages of at most $1"; fi
    else
      printf '%s\n' "$line" >&2
    fi
  done
}

require
mkdir -p "$(dirname "$dest")"
exec 9>"$dest.lock"
flock -n 9 || { say "waiting for another build of the same"; flock 9; }
if complete; then exit 0; fi
fetch
unpack
export GOROOT=$work/root/usr/lib/go-1.19 GOPATH=$work/gopath GOCACHE=$work/gocache
export GO111MODULE=off GOPROXY=off CGO_ENABLED=0 PATH=$work/root/usr/lib/go-1.19/bin:$PATH
cd "$tree"
generate_openapi
mkdir -p "$work/bin"
compile
install -m 0755 "$work/root/usr/bin/etcd" "$work/bin/etcd"
rm -rf "$dest"
mv "$work/bin" "$dest"
cd /
rm -rf "$work"
say "done: $(du -sh "$dest" | cut -f 1) in $dest"
