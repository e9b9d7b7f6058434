#!/bin/bash
# A job for each line of a file of overrides; what follows the file's name goes for all of them:
#   sbatch --array=1-3 conf/launch/slurm_array.sh jobs.txt experiment=flan_poly
# with a line such as "adapter=mhr seed=1". Each is a run of its own, saved and requeued by itself.
#SBATCH --job-name=polylab
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@90
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm_%A_%a.out
overrides=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$1")
if [ -z "$overrides" ]; then
    echo "$1 has no line ${SLURM_ARRAY_TASK_ID} · give --array=1-$(wc -l < "$1")" >&2
    exit 1
fi
eval "words=($overrides)" # quotes in a line hold together what they would on a command line
srun --kill-on-bad-exit=1 python -m polylab.train launch=slurm "${words[@]}" "${@:2}"
