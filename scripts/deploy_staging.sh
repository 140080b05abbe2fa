#!/usr/bin/env bash
# Applies the staging overlay to kubectl's current context and waits until it serves.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v kubectl >/dev/null || { echo "deploy-staging needs kubectl, configured for the staging cluster" >&2; exit 1; }
kubectl apply -k deploy/kubernetes/overlays/staging
kubectl --namespace vorta-staging rollout status deployment/vorta --timeout=300s
