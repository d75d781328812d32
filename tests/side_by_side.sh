# Source this. `side_by_side COMMAND A B` runs `COMMAND A` and `COMMAND B` at once, where COMMAND is a
# function that ends in exec; prints the words of A after those of B; fails if either fails. However
# the script ends, also by Ctrl-C, both end with it.
side_by_side() {
    local status=0
    log=$(mktemp)
    "$1" "$2" >"$log" 2>&1 &
    first=$!
    "$1" "$3" &
    second=$!
    trap 'kill "$first" "$second" 2>/dev/null || true; rm -f "$log"' EXIT
    trap 'exit 130' INT TERM
    wait "$second" || status=$?
    wait "$first" || status=$?
    cat "$log"
    rm -f "$log" # the trap knows the last log alone
    return "$status"
}
