variable "name" {
  type        = string
  nullable    = false
  description = "The bucket's name; unique in the whole object store on Ceph."

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.name)) && !strcontains(var.name, "..")
    error_message = "lab_bucket must have 3 to 63 of a-z, 0-9, - and ., and start and end with a letter or digit; it is ${var.name}."
  }
}

variable "manage" {
  type        = bool
  nullable    = false
  default     = true
  description = "Make the bucket; false: it exists already."
}

variable "versioning" {
  type        = bool
  nullable    = false
  default     = true
  description = "Keep earlier versions of objects, where the store can."
}
