#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# --help, --dump-plugin and the man page know the same keys; each key works;
# every command of the tool has --help and a man page, with the same options in both.
# Breaks if: a key or an option is added in one place only.
. "$(dirname "$0")/lib.sh"

plain () # ARGS: nbdkit with the plugin, no server
{
  (if [ -n "$preload" ]; then export LD_PRELOAD=$preload; fi; nbdkit "$@")
}
keys='backing cluster-size commit-interval compact compress compress-when connections control dedup defragment fenced file hash'
keys="$keys index-existing index-memory l2-cache-size lease max-incarnations readonly reconnect-delay size"
keys="$keys space-low store uri verify"
help=$(plain "$PLUGIN" --help | sed '1,/^plugin: dedup/d' |
       sed -n 's/^ *\[\{0,1\}\([a-z0-9-]*\)=.*/\1/p' | sort -u | xargs)
dump=$(plain "$PLUGIN" --dump-plugin | sed -n 's/^dedup_keys=//p' |
       tr ' ' '\n' | sort -u | xargs)
pod=$(dirname "$HERE")/../plugin/nbdkit-dedup-plugin.pod
man=$(sed -n '/^=head1 PARAMETERS/,/^=head1 ERR/p' "$pod" |
      sed -n 's/^=item .*B<\([a-z0-9-]*\)=.*/\1/p' | sort -u | xargs)
synopsis=$(sed -n '/^=head1 SYNOPSIS/,/^=head1 DESC/p' "$pod" |
           grep -o '[a-z0-9-]*\]\{0,1\}=' | tr -d ']=' | sort -u | xargs)
equal "keys in --help" "$help" "$keys"
equal "keys in --dump-plugin" "$dump" "$keys"
equal "keys in the man page" "$man" "$keys"
equal "keys in its synopsis" "$synopsis" "$keys"
plain "$PLUGIN" --dump-plugin | has '^thread_model=parallel$' ||
  die "thread model"
podchecker -warnings "$pod" 2>/dev/null || die "$pod is no good POD"

# Prints the options in the text on standard input, but those that all commands have.
options ()
{
  sed 's/--help\>//g; s/--version\>//g' |
    { grep -oE '(^|[^[:alnum:]-])(--[a-z][a-z-]*|-[a-z])' || true; } |
    sed 's/^[^-]*//' | sort -u | xargs
}
pods=$(dirname "$HERE")/../tools
for command in create info check recover index compact measure disk report scrub unlock \
               status metrics control; do
  tool $command --help >"$TMP/help" || die "$command --help"
  grep -q "$command" "$TMP/help" || die "$command --help says nothing"
  pod=$pods/qcow2-dedup-$command.pod
  podchecker -warnings "$pod" 2>/dev/null || die "$pod is no good POD"
  if [ $command = disk ]; then
    sed -n 's/^    disk \([a-z]*\) .*/\1/p' "$TMP/help" >"$TMP/commands"
    at_least "commands of disk" "$(wc -l <"$TMP/commands")" 10
    while read -r name; do
      tool disk "$name" --help >>"$TMP/help" || die "disk $name --help"
    done <"$TMP/commands"
  else
    equal "options in the synopsis of $command" \
      "$(sed -n '/^=head1 SYNOPSIS/,/^=head1 DESC/p' "$pod" | options)" \
      "$(options <"$TMP/help")"
  fi
  equal "options in the man page of $command" \
    "$(sed -n '/^=head1 OPTIONS/,/^=head1 /{ s/B<//g; s/^=item //p; }' "$pod" | options)" \
    "$(options <"$TMP/help")"
done
tool --help >"$TMP/help"
tool --version >/dev/null
for command in $(sed -n 's/^    qcow2-dedup \([a-z]*\) .*/\1/p' "$TMP/help"); do
  [ -f "$pods/qcow2-dedup-$command.pod" ] || die "$command has no man page"
done
