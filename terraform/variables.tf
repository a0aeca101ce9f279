variable "lab_dir" {
  type        = string
  nullable    = false
  description = "The lab's inventory folder, for example ../inventory/mylab. Its group_vars/all/lab.yml says everything else."

  validation {
    condition     = fileexists("${var.lab_dir}/group_vars/all/lab.yml")
    error_message = "lab_dir must be a lab's inventory folder: ${var.lab_dir}/group_vars/all/lab.yml is not there. Copy inventory/example, or correct the path."
  }

  validation {
    condition     = contains(["default", basename(var.lab_dir)], terraform.workspace)
    error_message = "The workspace is ${terraform.workspace}, but lab_dir is another lab's (${basename(var.lab_dir)}). Run: terraform workspace select -or-create ${basename(var.lab_dir)}"
  }
}

variable "expected_project" {
  type        = string
  nullable    = false
  default     = ""
  description = "Id of the project that the lab's server is in; empty: there is none yet. Another project is refused."
}

variable "adopt" {
  type        = map(string)
  nullable    = false
  default     = {}
  description = "Ids of what the project has already and the state does not know, by the names in adopt.tf."
}
