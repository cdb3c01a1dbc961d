#!/bin/bash
# sbatch examples/deploy/slurm.sh conf/mine.yaml run.dir=/shared/runs/mine
# Four nodes of eight GPUs; the environment and all paths of the configuration are on a file system that every node sees.
#SBATCH --job-name=masters-ray
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# The run saves and ends with exit code 75 half an hour before Slurm would kill it; the requeued job goes on.
left=$((SLURM_JOB_END_TIME - $(date +%s) - 1800))
read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export RAY_AUTH_MODE=token
[ -f ~/.ray/auth_token ] || ray get-auth-token --generate > /dev/null

code=0
srun ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
    env RAY_ADDRESS=auto masters-ray run "$@" "run.stop_after=${left}s" || code=$?
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
