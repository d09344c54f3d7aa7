#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# ./check, on a small tree with its own tests, runs all of them whatever build/
# was configured for before, and fails if one does not run: a source that
# meson.build leaves out, a program that is not there, a name in $threaded or
# $alone that does not exist, a script that may not be executed.  Two scripts run
# side by side, those of $alone one by one, and the output of one that fails is
# printed.
# Breaks if: ./check could pass without having run all the tests of the tree.
. "$(dirname "$0")/lib.sh"
need meson ninja cc
top=$(cd "$HERE/../.." && pwd)
tree=$TMP/tree
threads=$(sed -n "s/^threaded='\(.*\)'$/\1/p" "$top/check")
nr_threads=$(wc -w <<<"$threads")
at_least "tests for the thread sanitizer" "$nr_threads" 2
alone=$(sed -n "s/^alone='\(.*\)'$/\1/p" "$top/check")
nr_alone=$(wc -w <<<"$alone")
at_least "scripts that run alone" "$nr_alone" 2

new_tree ()
{
  local t
  rm -rf "$tree"
  mkdir -p "$tree"/{tools,tests/unit,tests/interop}
  cp "$top/check" "$tree"
  cp "$top/tests/inventory.py" "$tree/tests"
  cp "$top/meson_options.txt" "$tree"
  printf '#!/bin/sh\n' >"$tree/tools/install-deps.sh"
  printf '#!/bin/sh\nexit 0\n' >"$tree/tests/interop/test-script.sh"
  printf '#!/bin/sh\nexit 77\n' >"$tree/tests/interop/test-skipped.sh"
  for t in $alone; do
    # Fails if another one of them runs.
    printf '#!/bin/sh\nmkdir ../lock && sleep 0.2 && rmdir ../lock\n' \
      >"$tree/tests/interop/test-$t.sh"
  done
  chmod +x "$tree"/tools/*.sh "$tree"/tests/interop/*.sh
  cat >"$tree/meson.build" <<'MESON'
project('toy', 'c', default_options: ['c_std=gnu11'])
if get_option('tests').enabled()
  subdir('tests')
endif
MESON
  for t in plain $threads; do
    printf 'int\nmain (void)\n{\n  return 0;\n}\n' \
      >"$tree/tests/unit/test-$t.c"
    cat >>"$tree/tests/meson.build" <<MESON
test('$t', executable('test-$t', 'unit/test-$t.c'), suite: 'unit')
MESON
  done
}

# check_tree WANT [ARG...]: ./check ARG... ends with the line WANT.
check_tree ()
{
  local want=$1 status=0 last
  shift
  (cd "$tree" && ./check "$@") >"$TMP/out" 2>&1 || status=$?
  last=$(tail -n 1 "$TMP/out")
  [ "$last" = "$want" ] || { cat "$TMP/out" >&2; die "$last, not $want"; }
  case $want in
    *' 0 failed') equal "status of $want" $status 0 ;;
    *) [ $status != 0 ] || die "status 0 of $want" ;;
  esac
}
told () # LINE
{
  grep -qxF -- "$1" "$TMP/out" || { cat "$TMP/out" >&2; die "no line $1"; }
}

say "words that it does not know"
new_tree
for words in --slow '--quick --slow' 'one two'; do
  refused "$tree/check" $words
  one_error_line check 'usage: ./check \[--quick\]'
done

say "a build that was configured without tests"
new_tree
meson setup "$tree/build" "$tree" >"$TMP/log"
all=$((1 + nr_threads + 1 + nr_alone))
check_tree "$all passed, 0 failed" --quick
told 'SKIP  tests/interop/test-skipped.sh: '

say "sanitizers, and one name of the threaded tests that nobody has"
missing=${threads%% *}
sed -i "/'$missing'/d" "$tree/tests/meson.build"
rm "$tree/tests/unit/test-$missing.c"
check_tree "$((3 * nr_threads + nr_alone)) passed, 1 failed"
told "FAIL  unit, TSAN: $missing did not run"

say "a source that meson does not know"
new_tree
cp "$tree/tests/unit/test-plain.c" "$tree/tests/unit/test-new.c"
check_tree "$all passed, 1 failed" --quick
told 'FAIL  unit, plain: no test runs tests/unit/test-new.c'

say "a program without a test"
mv "$tree/tests/unit/test-new.c" "$tree/tests/unit/new.c"
echo "executable('new', 'unit/new.c')" >>"$tree/tests/meson.build"
check_tree "$all passed, 1 failed" --quick
told 'FAIL  unit, plain: no test runs tests/unit/new.c'
rm "$tree/tests/unit/new.c"
sed -i "/'new'/d" "$tree/tests/meson.build"

say "a program that is gone when it is to run"
cp "$tree/tests/unit/test-plain.c" "$tree/tests/unit/test-gone.c"
cat >>"$tree/tests/meson.build" <<'MESON'
gone = executable('test-gone', 'unit/test-gone.c')
test('gone', gone, suite: 'unit')
custom_target('rm', output: 'rm', command: ['rm', gone], build_by_default: true)
MESON
check_tree "$((1 + nr_alone)) passed, $((nr_threads + 2)) failed" --quick    # none is run then
told 'FAIL  unit, plain: gone did not run'

say "a script that may not be executed"
new_tree
chmod -x "$tree/tests/interop/test-script.sh"
check_tree "$((all - 1)) passed, 1 failed" --quick
told 'FAIL  tests/interop/test-script.sh (not executable)'

say "a name of scripts to run alone that no script has"
new_tree
rm "$tree/tests/interop/test-${alone%% *}.sh"
check_tree "$((all - 1)) passed, 1 failed" --quick
told "FAIL  scripts alone: there is no ${alone%% *}"

say "two scripts that wait for each other, of which one fails then"
new_tree
for t in one two; do
  cat >"$tree/tests/interop/test-$t.sh" <<SCRIPT
#!/bin/bash
mkfifo ../pipe 2>/dev/null
if [ $t = one ]; then
  echo hello >../pipe
else
  read -r word <../pipe
  echo "got \$word"
  exit 3
fi
SCRIPT
  chmod +x "$tree/tests/interop/test-$t.sh"
done
TEST_TIMEOUT=20 check_tree "$((all + 1)) passed, 1 failed" --quick
told 'got hello'
grep -q '^FAIL  tests/interop/test-two.sh (status 3), ' "$TMP/out" ||
  die "test-two.sh did not fail with its own status"
