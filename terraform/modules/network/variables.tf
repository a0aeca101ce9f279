variable "name" {
  type        = string
  nullable    = false
  description = "Prefix of what is made: the lab's name."
}

variable "network_id" {
  type        = string
  nullable    = false
  default     = ""
  description = "Id of a network that the project has already; empty: one is made."
}

variable "router_id" {
  type        = string
  nullable    = false
  default     = ""
  description = "Id of a router to join the new network to; empty: one is made. Many projects may have only one."

  validation {
    condition     = var.router_id == "" || var.network_id == ""
    error_message = "lab_router is for a network that is made here. With lab_network, the network's own router is used: remove lab_router."
  }
}

variable "external_network_id" {
  type        = string
  nullable    = false
  description = "Id of the network that a router leads to."
}

variable "cidr" {
  type        = string
  nullable    = false
  description = "Addresses of the network that is made, for example 10.20.0.0/24."

  validation {
    condition     = can(cidrhost(var.cidr, 10)) && !strcontains(var.cidr, ":")
    error_message = "lab_network_cidr must be an IPv4 range with room for some machines, for example 10.20.0.0/24; it is ${var.cidr}."
  }
}

variable "admin_networks" {
  type        = list(string)
  nullable    = false
  description = "CIDR ranges that may reach SSH, IPv4 or IPv6."

  validation {
    condition     = length(var.admin_networks) > 0 && alltrue([for c in var.admin_networks : can(cidrhost(c, 0))])
    error_message = "lab_admin_networks must be CIDR ranges, for example 192.0.2.0/24 or 192.0.2.7/32; it is ${jsonencode(var.admin_networks)}."
  }

  validation {
    condition     = !anytrue([for c in var.admin_networks : endswith(c, "/0")])
    error_message = "lab_admin_networks must not be everybody (/0): SSH is for the admins' own networks. Use your address with /32."
  }
}
