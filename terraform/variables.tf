variable "lab_file" {
  type        = string
  nullable    = false
  description = "The completed lab, for example ../build/mylab/lab.json. `labtrack provision prepare inventory/mylab` writes it from lab.yml."

  validation {
    condition     = can(jsondecode(file(var.lab_file)).found)
    error_message = "lab_file must be a completed lab: ${var.lab_file} is not there, or is another file. Write it with: labtrack provision prepare inventory/<lab>"
  }

  validation {
    condition     = contains(["default", try(jsondecode(file(var.lab_file)).lab_name, terraform.workspace)], terraform.workspace)
    error_message = "The workspace is ${terraform.workspace}, but lab_file is another lab's: ${var.lab_file}. Run: terraform workspace select -or-create <lab>"
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
