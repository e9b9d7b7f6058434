#!/bin/bash
# One run as a job of SLURM, on one node or several; the overrides are the script's arguments:
#   sbatch conf/launch/slurm.sh experiment=flan_poly data.batch_size=64
#   sbatch --nodes=2 conf/launch/slurm.sh experiment=flan_poly
#   sbatch --array=0-4 conf/launch/slurm.sh experiment=flan_poly seed='${oc.env:SLURM_ARRAY_TASK_ID}'
# One task is one rank. 90 seconds before the end the run is saved and requeued.
#SBATCH --job-name=polylab
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@90
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm_%j.out
srun --kill-on-bad-exit=1 python -m polylab.train launch=slurm trainer=ddp "$@"
