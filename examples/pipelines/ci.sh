#!/usr/bin/env bash
# Submits a run and waits for its end, for a job of any CI: ci.sh MANIFEST [SECONDS]. Needs kubectl and a kubeconfig;
# the namespace is the manifest's, or the context's. The same manifest again finds the same run and goes on waiting.
#
# Prints `uri=` and `sha256=` of the result. Exit codes: 0 succeeded; 1 failed, or deleted meanwhile, or the cluster is
# out of reach at the start; 2 refused, nothing was started; 124 not over after SECONDS (default: 86400): the run goes on,
# unless CANCEL=1 is set.
set -uo pipefail

manifest=${1:?usage: ci.sh MANIFEST [SECONDS]}
deadline=$((SECONDS + ${2:-86400}))

if ! named=$(kubectl apply -f "$manifest" -o 'jsonpath={.metadata.namespace} {.metadata.name}'); then
    # Whoever is let in and answered has refused the manifest.
    ! kubectl get --raw /apis/tandem.dev/v1alpha1 >/dev/null || exit 2
    exit 1
fi
read -r namespace name <<<"$named"
run=optimizationrun.tandem.dev/$name
echo "waiting for $namespace/$name" >&2

of_run() { kubectl get -n "$namespace" "$run" --ignore-not-found -o "jsonpath=$1"; }
condition() { of_run "{.status.conditions[?(@.type==\"Succeeded\")].$1}"; }

# A corrected manifest's run still has the refusal of the one before, until the operator has looked at it.
is_of_another_manifest() {
    [ "$(condition reason)" = InvalidSpec ] && [ "$(condition observedGeneration)" != "$(of_run '{.metadata.generation}')" ]
}

# Succeeded is True or False at the end. Stalled is its opposite, which `kubectl wait` can wait for at the same time.
until_something() {
    local left=$((deadline - SECONDS)) waiting=()
    for kind in Succeeded Stalled; do
        kubectl wait -n "$namespace" "$run" --for="condition=$kind" --timeout="${left}s" >/dev/null 2>&1 &
        waiting+=($!)
    done
    wait -n || sleep 1 # the API server may be away for a while
    kill "${waiting[@]}" 2>/dev/null
    wait
}

while :; do
    if found=$(of_run '{.metadata.uid}'); then
        [ -n "$found" ] || { echo "$namespace/$name was deleted" >&2; exit 1; }
        case $(condition status) in
            True)
                if uri=$(of_run '{.status.result.uri}') && sha256=$(of_run '{.status.result.sha256}'); then
                    printf 'uri=%s\nsha256=%s\n' "$uri" "$sha256"
                    exit 0
                fi
                sleep 1
                ;;
            False)
                if ! is_of_another_manifest; then
                    echo "$namespace/$name failed: $(condition reason): $(condition message)" >&2
                    exit 1
                fi
                sleep 1
                ;;
        esac
    fi
    if [ "$SECONDS" -ge "$deadline" ]; then
        echo "$namespace/$name is not over in time: $(of_run '{.status.phase}')" >&2
        [ "${CANCEL:-}" != 1 ] || kubectl delete -n "$namespace" "$run" --wait=false >&2
        exit 124
    fi
    until_something
done
